"""Schemas of every kind that hadal keeps, and of kinds that it does not, made from a seed."""

import random

FORMATS = ["date", "time", "date-time", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "duration"]
PATTERNS = [r"^[A-Z]{2}\d{3,5}$", r"^(foo|ba[rz])+-\w*$", r"^\S+ \S+$", r"colou?r", r"^[^\"\\a-f]{1,4}$", r"^.{0,12}$",
            r"^(?:[a-z]+\.)*[a-z]+$", r"^\u00e9[\x41-\x45]+|\d$", r"^$", r"^a|b$", r"[<>&]{3}", r"^\W\D\S$"]
NAMES = ["id", "name", "a", "ab", "größe", 'q"uote', "with space", "x/y", "tags", "next", "$ref", "type", "items"]


class Generator:
    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.names: list[str] = []

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def case(self) -> dict:
        r = self.random
        self.names = [f"d{i}" for i in range(r.choice([0, 0, 1, 2]))]
        schema = self.of_object(3) if self.chance(0.7) else self.schema(3)
        if self.names:
            key = r.choice(["$defs", "definitions"])
            text = {name: self.of_object(2) for name in self.names}
            schema = {**schema, key: text}
            return replace(schema, key)
        return schema

    def schema(self, depth: int) -> dict:
        kinds = [self.of_string, self.of_number, self.of_constant, self.of_plain]
        if depth > 0:
            kinds += [self.of_object, self.of_object, self.of_array, self.of_any, self.of_types, self.of_all]
        if self.names:
            kinds.append(self.of_reference)
        kind = self.random.choice(kinds)
        schema = kind(depth)
        if self.chance(0.2):
            schema = {**schema, "description": "a remark", "title": "T", "examples": [1]}
        return schema

    def of_plain(self, _depth: int) -> dict:
        return {"type": self.random.choice(["string", "boolean", "null", "integer", "number"])}

    def of_string(self, _depth: int) -> dict:
        r = self.random
        schema: dict = {"type": "string"}
        kind = r.randrange(4)
        if kind == 0:
            schema["format"] = r.choice(FORMATS)
        elif kind == 1:
            schema["pattern"] = r.choice(PATTERNS)
        elif kind == 2:
            least = r.randrange(5)
            if self.chance(0.6):
                schema["minLength"] = least
            if self.chance(0.6):
                schema["maxLength"] = least + r.randrange(20)
        return schema

    def of_number(self, _depth: int) -> dict:
        r = self.random
        schema: dict = {"type": r.choice(["integer", "number"])}
        low = r.choice([0, 1, -1, 7, 10, -10, 99, -100, -12345, 10**6, -(10**15)])
        if self.chance(0.6):
            schema[r.choice(["minimum", "exclusiveMinimum"])] = low
        if self.chance(0.6):
            schema[r.choice(["maximum", "exclusiveMaximum"])] = low + r.choice([3, 9, 10, 100, 12345, 10**9])
        if schema["type"] == "integer" and self.chance(0.2):
            schema["minimum"] = low - 0.5
        return schema

    def of_constant(self, _depth: int) -> dict:
        r = self.random
        values = [1, -2, 2.5, "x", "y y", "ü\"\\\n", True, None, [1, "a"], {"k": [None]}, "", "</p>"]
        return {"const": r.choice(values)} if self.chance(0.3) else {"enum": r.sample(values, r.randrange(1, 5))}

    def of_array(self, depth: int) -> dict:
        r = self.random
        schema: dict = {"type": "array"}
        if self.chance(0.8):
            schema["items"] = self.schema(depth - 1)
        if self.chance(0.25):
            schema["prefixItems"] = [self.schema(depth - 1) for _ in range(r.randrange(1, 4))]
        least = r.randrange(3)
        if self.chance(0.5):
            schema["minItems"] = least
        if self.chance(0.5):
            schema["maxItems"] = least + r.randrange(4)
        if "prefixItems" in schema and self.chance(0.3):
            schema["items"] = False
            schema.pop("minItems", None)
        return schema

    def of_object(self, depth: int) -> dict:
        r = self.random
        names = r.sample(NAMES, r.randrange(5))
        schema: dict = {"type": "object", "properties": {name: self.schema(depth - 1) for name in names}}
        schema["required"] = [name for name in names if self.chance(0.6)]
        more = r.randrange(4)
        if more == 0:
            schema["additionalProperties"] = False
        elif more == 1:
            schema["additionalProperties"] = self.schema(0)
        elif more == 2 and self.chance(0.3):
            schema["required"].append("undeclared")
        return schema

    def of_any(self, depth: int) -> dict:
        schema: dict = {"anyOf": [self.schema(depth - 1) for _ in range(self.random.randrange(1, 4))]}
        if self.chance(0.2):
            schema = {"oneOf": [
                {"type": "object", "properties": {"kind": {"const": name}, "v": self.schema(depth - 1)},
                 "required": ["kind"]} for name in ("p", "q")]}
        return schema

    def of_types(self, depth: int) -> dict:
        types = self.random.sample(["string", "boolean", "null", "integer", "object", "array"], 3)
        schema = {**self.of_object(depth), "items": self.schema(0), "maxLength": 6, "type": types}
        if self.chance(0.3):
            schema["nullable"] = False
        return schema

    def of_all(self, depth: int) -> dict:
        first = self.of_object(depth)
        second = self.of_object(depth)
        for part in (first, second):
            part.pop("additionalProperties", None)
        return {"allOf": [first, second]}

    def of_reference(self, _depth: int) -> dict:
        # An optional way out, so that the references end.
        return {"anyOf": [{"$ref": "#/DEFS/" + self.random.choice(self.names)}, {"type": "null"}]}


def replace(value, key: str):
    """The place of the definitions, put into the references."""
    if isinstance(value, dict):
        return {k: replace(v, key) for k, v in value.items()}
    if isinstance(value, list):
        return [replace(v, key) for v in value]
    return value.replace("#/DEFS/", f"#/{key}/") if isinstance(value, str) else value


