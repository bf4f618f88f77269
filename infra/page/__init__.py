"""The page: the road live in a browser, folded from the events alone."""
