"""The page that `composer page` serves: pictures taken apart, requests in a queue, results (extra ``page``)."""
