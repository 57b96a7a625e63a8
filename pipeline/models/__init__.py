"""Models, their loading and their selection. No module below this package imports ray."""
