"""Other people's registration methods, each behind the interface of `method.Method`."""
