"""The process that moves bytes: a bare epoll loop. Imports neither trio nor structlog nor pydantic."""
