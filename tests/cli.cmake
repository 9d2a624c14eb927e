# Black-box tests of the program: shell scripts that check exit codes, exact messages and JSON.
add_executable(json_check cli/json_check.c)
target_link_libraries(json_check PRIVATE walsh_flags PkgConfig::JANSSON)

file(GLOB cli_scripts CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR}/cli cli/test_*.sh)
foreach(script ${cli_scripts})
  string(REGEX REPLACE "^test_(.*)\\.sh$" "cli_\\1" name ${script})
  add_test(NAME ${name} COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/cli/${script})
  set_tests_properties(${name} PROPERTIES ENVIRONMENT
    "CLI_WALSH=$<TARGET_FILE:walsh>;CLI_JSON_CHECK=$<TARGET_FILE:json_check>;CLI_EXAMPLE=$<TARGET_FILE:example_generate>;CLI_EXAMPLE_BATCH=$<TARGET_FILE:example_batch>;CLI_RANDOM_CHECKPOINT=$<TARGET_FILE:random_checkpoint>;CLI_SOURCE=${CMAKE_SOURCE_DIR}")
endforeach()

add_test(NAME layers COMMAND ${CMAKE_SOURCE_DIR}/tools/check_layers.sh)

# For tests/proof/run.sh, and cli/test_rotations.sh.
add_executable(random_checkpoint proof/random_checkpoint.c)
target_link_libraries(random_checkpoint PRIVATE walsh_flags)
add_executable(encode_texts proof/encode_texts.c)
target_link_libraries(encode_texts PRIVATE walsh_api)
add_executable(soak proof/soak.c)
target_link_libraries(soak PRIVATE walsh_api)
target_include_directories(soak PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})

# The examples are built too, and give what the program gives.
add_executable(example_generate ${CMAKE_SOURCE_DIR}/examples/generate.c)
target_link_libraries(example_generate PRIVATE walsh_api)
add_executable(example_batch ${CMAKE_SOURCE_DIR}/examples/batch.c)
target_link_libraries(example_batch PRIVATE walsh_api)
foreach(example quantize_tensor packed_linear experts)
  add_executable(example_${example} ${CMAKE_SOURCE_DIR}/examples/${example}.c)
  target_link_libraries(example_${example} PRIVATE walsh_api)
  add_test(NAME example_${example} COMMAND example_${example})
endforeach()
set_tests_properties(example_quantize_tensor PROPERTIES PASS_REGULAR_EXPRESSION
  "2 bits: .*error 0[.]2.*3 bits: .*error 0[.]1.*4 bits: .*error 0[.]0")
set_tests_properties(example_packed_linear PROPERTIES PASS_REGULAR_EXPRESSION
  "by 4 bits, relative error 0[.]0[0-9]*\nrotated and back in place, relative error 0[.]0")

set_tests_properties(example_experts PROPERTIES PASS_REGULAR_EXPRESSION "experts in MXFP4, 5 rows, relative error 0[.]0")

# Parts of the server, without the rest of the program.
file(GLOB serve_parts ${CMAKE_SOURCE_DIR}/app/serve/reasoning.c ${CMAKE_SOURCE_DIR}/app/serve/keys.c
  ${CMAKE_SOURCE_DIR}/app/output.c ${CMAKE_SOURCE_DIR}/app/files.c ${CMAKE_SOURCE_DIR}/app/command.c ${CMAKE_SOURCE_DIR}/app/progress.c)
add_executable(test_serve_parts unit/serve_parts.c ${serve_parts})
target_link_libraries(test_serve_parts PRIVATE walsh_api PkgConfig::JANSSON PkgConfig::CMOCKA)
target_include_directories(test_serve_parts PRIVATE ${CMAKE_SOURCE_DIR}/app)
target_compile_definitions(test_serve_parts PRIVATE WALSH_DATA_FROM_PROGRAM="" WALSH_DATA_INSTALLED="" WALSH_DATA_SOURCE="")
add_test(NAME test_serve_parts COMMAND test_serve_parts)
add_executable(test_serve_work unit/serve_work.c ${CMAKE_SOURCE_DIR}/app/serve/work.c)
target_link_libraries(test_serve_work PRIVATE walsh_flags Threads::Threads PkgConfig::CMOCKA)
target_include_directories(test_serve_work PRIVATE ${CMAKE_SOURCE_DIR}/app)
add_test(NAME test_serve_work COMMAND test_serve_work)
add_dependencies(unit_tests test_serve_parts test_serve_work)
