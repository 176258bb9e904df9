"""What the command lines of this project share: words and names as people write them, and what is said of them."""
