"""A plan -> commands and files for every node: engines say which processes there are, forms how they are started."""
