"""A model on a port: the HTTP interface that OpenAI's clients speak, a web page, and nothing of sampling.

`app` joins the parts: `guard` (who may ask), `fields` (what is asked), `shapes` (what is answered), `metrics`, `schema`, `page`.
`connections` are the clocks of HTTP connections, `command` is ``llada-native serve``. Requests meet in `llada_native.scheduler`.
"""
