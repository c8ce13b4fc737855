"""Pipeline schedules as data: table (the words), flush, zero_bubble, dualpipe."""
