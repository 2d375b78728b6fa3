"""Reading and writing: files, safetensors, images, tables and contact sheets."""
