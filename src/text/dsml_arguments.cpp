#include "text/dsml_arguments.h"

#include <utility>

namespace hadal {
namespace {

enum TypeBit : unsigned {
  kNull = 1,
  kBoolean = 2,
  kNumber = 4,
  kString = 8,
  kArray = 16,
  kObject = 32,
};

unsigned type_of(const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::null:
      return kNull;
    case JsonValue::Kind::boolean:
      return kBoolean;
    case JsonValue::Kind::number:
      return kNumber;
    case JsonValue::Kind::string:
      return kString;
    case JsonValue::Kind::array:
      return kArray;
    case JsonValue::Kind::object:
      return kObject;
  }
  return 0;
}

unsigned type_named(std::string_view name) {
  if (name == "null") return kNull;
  if (name == "boolean") return kBoolean;
  if (name == "number" || name == "integer") return kNumber;
  if (name == "string") return kString;
  if (name == "array") return kArray;
  if (name == "object") return kObject;
  return 0;
}

// The types that a schema allows; 0 when it does not say.
unsigned types_of_schema(const JsonValue* schema) {
  if (schema == nullptr) return 0;
  unsigned types = 0;
  if (const JsonValue* type = schema->find("type"); type != nullptr) {
    if (type->is_string()) return type_named(type->text);
    for (const JsonValue& one : type->items) types |= type_named(one.text);
    return types;
  }
  if (const JsonValue* values = schema->find("enum"); values != nullptr) {
    for (const JsonValue& value : values->items) types |= type_of(value);
    return types;
  }
  if (const JsonValue* value = schema->find("const"); value != nullptr) return type_of(*value);
  for (const std::string_view union_key : {"anyOf", "oneOf"}) {
    const JsonValue* options = schema->find(union_key);
    if (options == nullptr) continue;
    for (const JsonValue& option : options->items) {
      const unsigned one = types_of_schema(&option);
      if (one == 0) return 0;  // this one takes anything, or does not say
      types |= one;
    }
  }
  return types;
}

}  // namespace

ToolSchemas tool_schemas_from_json(const JsonValue& tools) {
  ToolSchemas schemas;
  for (const JsonValue& tool : tools.items) {
    const JsonValue* function = tool.find("function");
    if (function == nullptr) continue;
    const JsonValue* name = function->find("name");
    const JsonValue* parameters = function->find("parameters");
    if (name != nullptr && name->is_string() && parameters != nullptr) schemas[name->text] = *parameters;
  }
  return schemas;
}

void ArgumentWriter::begin(const JsonValue* parameters) {
  open_.clear();
  open_.push_back({parameters, true});
}

const JsonValue* ArgumentWriter::begin_member(std::string_view name, std::string& out) {
  Object& object = open_.back();
  if (!object.empty) {
    out += ", ";
  } else if (open_.size() == 1) {
    out += '{';
  }
  object.empty = false;
  append_json_string(out, name);
  out += ": ";
  if (object.schema == nullptr) return nullptr;
  const JsonValue* properties = object.schema->find("properties");
  return properties == nullptr ? nullptr : properties->find(name);
}

void ArgumentWriter::begin_value(std::string_view name, ValueForm form, std::string& out) {
  value_schema_ = begin_member(name, out);
  types_ = types_of_schema(value_schema_);
  form_ = form;
  streaming_ = form != ValueForm::json && (types_ == 0 || (types_ & kString) != 0);
  value_.clear();
  if (streaming_) out += '"';
}

void ArgumentWriter::value_text(std::string_view text, std::string& out) {
  if (streaming_) {
    append_json_escaped(out, text);
  } else {
    value_ += text;
  }
}

void ArgumentWriter::end_value(std::string& out) {
  if (streaming_) {
    out += '"';
  } else {
    end_typed_value(out);
  }
}

void ArgumentWriter::end_typed_value(std::string& out) {
  // Within the whole object the value stays inside the depth that parse_json takes by default.
  const int max_depth = JsonParseOptions().max_depth - static_cast<int>(open_.size());
  const Result<JsonValue> json = parse_json(value_, {.max_depth = max_depth});
  const unsigned type = json ? type_of(*json) : 0;
  const bool wanted = types_ == 0 || (type & types_) != 0;
  if (form_ == ValueForm::json) {
    if (json && (wanted || (types_ & kString) == 0)) {
      out += value_;
      return;
    }
  } else if (json && wanted && type != kString) {
    out += value_;
    return;
  }
  if ((types_ & kBoolean) != 0 && (value_ == "True" || value_ == "False")) {  // Python's spelling
    out += value_ == "True" ? "true" : "false";
    return;
  }
  append_json_string(out, value_);
}

bool ArgumentWriter::value_to_object(std::string& out) {
  if (streaming_ || depth() >= kMaxDepth || value_.find_first_not_of(" \t\r\n") != std::string::npos)
    return false;
  out += '{';
  open_.push_back({value_schema_, true});
  return true;
}

void ArgumentWriter::begin_object(std::string_view name, std::string& out) {
  const JsonValue* schema = begin_member(name, out);
  out += '{';
  open_.push_back({schema, true});
}

void ArgumentWriter::end_object(std::string& out) {
  out += '}';
  open_.pop_back();
}

void ArgumentWriter::end(std::string& out) {
  while (depth() > 0) end_object(out);
  if (open_.back().empty) out += '{';
  out += '}';
}

}  // namespace hadal
