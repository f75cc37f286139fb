"""Two small services, orders and billing, that face each other: for the demo, the tests and to read."""
