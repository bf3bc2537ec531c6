"""Files from outside as checked pixels: parsed and decoded in bounded processes, and shared without copies."""
