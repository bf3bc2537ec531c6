"""What a person at a terminal sees: a server's answers side by side, the catalogue, boxes in a picture."""
