"""The playground, a web page served by the API."""
