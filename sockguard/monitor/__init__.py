"""The only process with capabilities. Imports neither trio nor structlog nor pydantic."""
