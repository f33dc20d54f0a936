"""What leaves JAX: policies for other programs, and flights for other maps and ground stations."""
