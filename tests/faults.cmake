# Each call of a job fails in turn (faults/torture.c): some calls of each job here, all of them in proof/faults.sh.
add_library(faults_shim MODULE faults/shim.c)
target_link_libraries(faults_shim PRIVATE ${CMAKE_DL_LIBS})
target_compile_definitions(faults_shim PRIVATE _GNU_SOURCE)
target_compile_options(faults_shim PRIVATE -Wall -Wextra -Wconversion -Wshadow -Werror)
add_executable(faults_torture faults/torture.c)
target_compile_definitions(faults_torture PRIVATE _GNU_SOURCE)
target_compile_options(faults_torture PRIVATE -Wall -Wextra -Wconversion -Wshadow -Werror)
target_include_directories(faults_torture PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
# A sanitizer's allocator must come first.
if(NOT WALSH_SANITIZE AND NOT CMAKE_CROSSCOMPILING)
  add_test(NAME faults COMMAND faults_torture $<TARGET_FILE:faults_shim> $<TARGET_FILE:walsh> ${CMAKE_SOURCE_DIR} --most 24 --seed 1)
endif()
