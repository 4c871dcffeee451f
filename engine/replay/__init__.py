"""A trace of requests, replayed through the placement code without moving a byte."""
