"""What experiments share: records of numbers, and the tables made from them."""
