"""One user as the logs and the model see him: who he is, what moves him, how he changed, who is like him."""
