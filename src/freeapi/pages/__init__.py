"""What a person or a monitor looks at: nothing here is part of the API."""
