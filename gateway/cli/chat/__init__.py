"""``narrowgate chat``: a small chat in the terminal with any OpenAI endpoint."""
