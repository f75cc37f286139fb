"""The demo: two services, real servers, crashes in the middle, and a verdict recounted from the databases."""
