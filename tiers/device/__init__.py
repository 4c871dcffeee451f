"""The server's KV tensors on their device, and copies between them and slots."""
