"""Models: from a package, a hub snapshot or a folder to a local safetensors folder, and from there to memory."""
