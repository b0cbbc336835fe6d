def judge(*a):
    return 2
