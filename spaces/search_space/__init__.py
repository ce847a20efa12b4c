"""What a study may propose: the axes it samples, the limits it keeps, and the policies they stand for."""
