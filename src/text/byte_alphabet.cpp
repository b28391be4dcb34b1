#include "text/byte_alphabet.h"

#include <array>
#include <cstdint>

namespace hadal {
namespace {

constexpr int kCharacters = 0x100 + 68;  // the alphabet lies within [0, kCharacters)

struct Alphabet {
  std::array<std::uint16_t, 256> character_of{};
  std::array<std::int16_t, kCharacters> byte_of{};

  constexpr Alphabet() {
    for (auto& byte : byte_of) byte = -1;
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const int character = itself ? byte : next++;
      character_of[static_cast<std::size_t>(byte)] = static_cast<std::uint16_t>(character);
      byte_of[static_cast<std::size_t>(character)] = static_cast<std::int16_t>(byte);
    }
  }
};

constexpr Alphabet kAlphabet;

}  // namespace

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  for (std::size_t i = 0; i < spelling.size(); ++i) {
    std::uint32_t character = static_cast<std::uint8_t>(spelling[i]);
    if (character >= 0x80) {  // the alphabet ends below U+0800: one or two bytes of UTF-8
      if ((character & 0xE0) != 0xC0 || i + 1 == spelling.size()) return std::nullopt;
      character = (character & 0x1F) << 6 | (static_cast<std::uint8_t>(spelling[++i]) & 0x3F);
    }
    if (character >= kCharacters || kAlphabet.byte_of[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of[character]));
  }
  return bytes;
}

std::string spelling_of_bytes(std::string_view bytes) {
  std::string spelling;
  spelling.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    const std::uint16_t character = kAlphabet.character_of[static_cast<std::uint8_t>(byte)];
    if (character < 0x80) {
      spelling.push_back(static_cast<char>(character));
    } else {
      spelling.push_back(static_cast<char>(0xC0 | character >> 6));
      spelling.push_back(static_cast<char>(0x80 | (character & 0x3F)));
    }
  }
  return spelling;
}

}  // namespace hadal
