"""The record store: what is kept of scored and steered requests. The only room that imports SQLAlchemy."""
