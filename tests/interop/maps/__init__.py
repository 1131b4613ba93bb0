"""Maps as Go's programs read and write them."""
