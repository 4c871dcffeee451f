"""Text that users write and read: sizes, ages, quoted values. Imports neither pydantic nor asyncio."""
