"""GGUF files, made and checked with llama.cpp in a child process (`worker`); `types` and `expected` are light."""
