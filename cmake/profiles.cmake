# The hardware profiles of src/plan/profiles as text in the plan library: plan/builtin_profiles.inc, a list of raw
# string literals in the order of their names.
file(GLOB profiles CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/plan/profiles/*.json)
set(literals "")
foreach(profile ${profiles})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${profile})
  file(READ ${profile} text)
  string(APPEND literals "R\"json(${text})json\",\n")
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/plan/builtin_profiles.inc CONTENT "${literals}" @ONLY)
target_include_directories(hadal_plan PRIVATE ${CMAKE_BINARY_DIR}/generated)
