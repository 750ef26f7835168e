# SPDX-License-Identifier: BSD-2-Clause
"""The interface file, read as a client generator would: what each method takes and answers."""
import re

import harness

PATH = harness.ROOT / "proto" / "io.reuseport.Control.varlink"


def _fields(text):
    """"a: int, b: ?[]T" as {name: type}."""
    return dict(re.findall(r"(\w+)\s*:\s*([^\s,]+)", text))


class Interface:
    def __init__(self, text=None):
        text = re.sub(r"#.*", "", text if text is not None else PATH.read_text())
        struct = r"\(([^()]*)\)"
        self.types = {name: _fields(fields) for name, fields in re.findall(r"type (\w+)\s*" + struct, text)}
        self.errors = {name: _fields(fields) for name, fields in re.findall(r"error (\w+)\s*" + struct, text)}
        self.methods = {name: (_fields(takes), _fields(answers)) for name, takes, answers in
                        re.findall(r"method (\w+)\s*" + struct + r"\s*->\s*" + struct, text)}

    def mistakes(self, fields, value, where="reply"):
        """What of the object is not as its fields are declared: a list of sentences."""
        found = [f"{where} has no {name}" for name, type_ in fields.items()
                 if name not in value and not type_.startswith("?")]
        found += [f"{where}.{name} is not declared" for name in value if name not in fields]
        for name, type_ in fields.items():
            if name in value:
                found += self._of_type(type_, value[name], f"{where}.{name}")
        return found

    def _of_type(self, type_, value, where):
        if type_.startswith("?"):
            return [] if value is None else self._of_type(type_[1:], value, where)
        if type_.startswith("[]"):
            if not isinstance(value, list):
                return [f"{where} is no array"]
            return [m for i, each in enumerate(value) for m in self._of_type(type_[2:], each, f"{where}[{i}]")]
        if type_ in self.types:
            if not isinstance(value, dict):
                return [f"{where} is no {type_}"]
            return self.mistakes(self.types[type_], value, where)
        python = {"int": int, "string": str, "bool": bool}[type_]
        return [] if type(value) is python else [f"{where} is {value!r}, not {type_}"]

    def check_answer(self, method, answer):
        found = self.mistakes(self.methods[method][1], answer)
        assert not found, "\n".join(found)
