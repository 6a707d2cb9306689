"""What a person types: one notebook with other parameters, many runs at once, a look at records."""
