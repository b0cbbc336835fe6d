def serve(code, channel):
    exec(code, {})
