"""Does one executor run the report's schedules as their tables say, and what do they cost?"""
