"""How a comparison is shown: terminal tables, a JSON file, a picture, a page.

Free of torch; matplotlib is imported only to draw. What a report holds is said at
``gateway.engine.comparison.compare``.
"""
