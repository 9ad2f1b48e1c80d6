"""What a long run of a pair is made of: a load, what its clients wait, and whether every byte is where it belongs."""
