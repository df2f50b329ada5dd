"""Pictures for the documentation, all from one real run: the page, and every dashboard."""
