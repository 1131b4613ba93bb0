"""The client of a relay, over sockets and asyncio tasks."""
