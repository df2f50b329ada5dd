"""How keys and values are kept while a sequence is decoded; importing this loads nothing."""
