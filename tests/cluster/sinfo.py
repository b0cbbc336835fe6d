"""What sinfo printed of a Slurm with nodes of several kinds."""

SINFO = """\
main*|up|2|8|UNLIMITED|8191|infinite|gpu:h100:4
main*|up|2|96|UNLIMITED|515000|infinite|(null)
main*|up|1|64|UNLIMITED|1031000|infinite|gpu:a100:4,gpu:1g.10gb:7,nic:2
main*|up|1|64|UNLIMITED|1031000|infinite|gpu:8
limited|up|2|8|UNLIMITED|8191|30:00|gpu:h100:4
cpu|up|2|96|48|515000|1-12:00:00|(null)
untyped|down|1|64|UNLIMITED|1031000|3:00:00|gpu:8
empty|up|0|0|UNLIMITED|0|infinite|(null)
"""
