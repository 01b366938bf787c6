from __future__ import annotations

import pytest

from service.deferral.code_request import asks_for_code, computes_nothing


@pytest.mark.parametrize("request_text", [
    "Show me a function that reverses a list.",
    "Write a Python function to check whether a string is a palindrome, with an example.",
    "Can you give me a snippet to merge two dicts?",
    "I need a script to rename files",
    "Implement quicksort and call it on a sample list",
    "Write a SQL query to count users",
    "Explain recursion with an example in Python",
    "How do I sort a dict by value?",
    "what's a lambda in python",
    "Give me an example of a for loop",
    "How do you loop over a dictionary in Python?",
    "Create a class for a bank account with deposit and withdraw, and show it in use.",
    "What is the difference between a list and a tuple in Python?",
    "Write a regex that matches emails",
    "how to open a file",
    "Show me how to make a GET request in JS",
    "Show me a Python decorator that prints how long a function takes to run.",
    "What does a list comprehension for the squares of the even numbers look like?",
    "Reverse a string in JavaScript",
    "Zeig mir eine Python-Funktion, die eine Liste umdreht.",
    "Escribe una función en Python que sume dos números",
    "Écris une fonction qui trie une liste",
    "写一个反转字符串的Python函数",
    "Напиши функцию, которая складывает два числа",
])  # fmt: skip
def test_requests_for_code(request_text: str) -> None:
    assert asks_for_code(request_text)


@pytest.mark.parametrize("request_text", [
    "What is 17*23? Give me the method.",
    "I need 3 stacks of 12 boxes; how many boxes?",
    "How many servers do we need if each server handles 300 of 12000 requests?",
    "What is 2**100 in Python?",
    "What is the sum of list [1,2,3] in python?",
    "What is 1234 * 5678 + 91?",
    "Compute the 50th Fibonacci number using python",
    "Using Python, calculate 2**100",
    "Use Python to find the sum of the squares from 1 to 50.",
    "Write a Python function for factorial and tell me the value of 20!",
    "Write a program that adds the primes below 100, run it and report the sum",
    "A class of 30 students needs 4 books each. How many books?",
    "How many functions are there from {1,2,3} to {a,b}?",
    "Find the derivative of the function x^2",
    "How do I calculate 15% of 80?",
    "What is the sum of the list [3, 5, 7]?",
    "Please add up the numbers in this list: 3,4,5",
    "Convert 98.6F to Celsius",
    "How many days are there between 2024-03-15 and 2025-01-02?",
    "Let $f(x)$ be the function defined by $f(x) = 2x$. What is $f(3)$?",
    "¿Cuánto es 7846 multiplicado por 5329?",
    "Wie viel ist 12 mal 34?",
])  # fmt: skip
def test_requests_for_a_value(request_text: str) -> None:
    assert not asks_for_code(request_text)


def test_a_change_to_earlier_code_is_a_request_for_code() -> None:
    assert asks_for_code("Make it shorter, please.", after_code=True)
    assert not asks_for_code("Make it shorter, please.")
    assert not asks_for_code("Great. Now, what is the exact value of 23 factorial?", after_code=True)


@pytest.mark.parametrize(
    "piece", ["how to ", "write ", "a ", "$", "\\(", "show me ", "how do i read a ", "class "]
)
def test_examines_only_the_ends_of_a_long_request(piece: str) -> None:
    filler = piece * 400
    assert asks_for_code(f"Write a Python function.\n{filler * 100}\nOver.")
    assert asks_for_code(f"{filler * 100}\nWrite a Python function.")
    middle = "lorem ipsum " * 400
    assert not asks_for_code(f"{middle}\nWrite a Python function.\n{middle}")


@pytest.mark.parametrize(("code", "expected"), [
    ("def f(x):\n    return x", True),
    ("import math\n\nclass A:\n    pass", True),
    ('"""Only a comment."""', True),
    ("name = input('Your name? ')\nprint(name)", True),
    ("def f(x):\n    return x\n\nprint(f(2))", False),
    ("print('The weather is beautiful today.')\nprint()", True),
    ("print(f'{2 + 2}')", False),
    ("print(2)", False),
    ("x = 2", False),
    ("2 + 2", False),
    ("def f(:", False),
    ("x.input()", False),
])  # fmt: skip
def test_computes_nothing(code: str, expected: bool) -> None:
    assert computes_nothing(code) is expected


@pytest.mark.parametrize("word", ["show", "write", "define", "class", "make", "explain", "how do i read"])
@pytest.mark.parametrize("char", list(".-+'#*_| \t/\\,;:"))
def test_runs_of_one_character_take_linear_time(word: str, char: str) -> None:
    """Dotted leaders and rules: a pattern that backtracks over them would not return in time."""
    assert not asks_for_code(f"{word} {char * 2000}")
    assert not asks_for_code(f"{word}{char * 1998}x")
