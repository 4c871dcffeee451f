"""The scheduler's side of the plugin, without vLLM: what requests hold, load, store and compute."""
