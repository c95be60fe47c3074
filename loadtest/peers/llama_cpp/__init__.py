"""llama.cpp's server as a peer: how its source is fetched and built."""
