"""Ray clusters: started on this machine, or joined where they are."""
