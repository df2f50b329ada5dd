"""The built-in page: static files that a browser runs as they are."""
