"""File systems of images, in which commands run one after another: docs/containers.md."""
