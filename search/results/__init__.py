"""What a study found: its tables, its front, its finals and the pictures of them."""
