"""The same small shop, with other ways of doing what follows from an order."""
