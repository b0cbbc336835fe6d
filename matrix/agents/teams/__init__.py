"""Teams that come with matrix; conf/agents has a file for each."""
