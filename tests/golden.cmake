# Reference outputs of the models that are shipped; golden --proof runs the larger ones (tests/golden/golden.c).
add_executable(golden golden/golden.c)
target_link_libraries(golden PRIVATE walsh_api)

set(fixtures ${CMAKE_CURRENT_SOURCE_DIR}/fixtures)
add_test(NAME golden_bookworm_8m COMMAND golden ${CMAKE_SOURCE_DIR}/models/bookworm-8m
  ${fixtures}/golden/bookworm-8m.safetensors ${CMAKE_SOURCE_DIR}/data/valid.txt 8192 25.9852)
add_test(NAME golden_tiny_qwen3_moe COMMAND golden ${fixtures}/golden/tiny-qwen3-moe
  ${fixtures}/golden/tiny-qwen3-moe.safetensors)
set(architectures gpt-oss llama2 llama3 smollm2 mistral mixtral qwen2 qwen3 smollm3 gemma2 gemma3 phi3
  phi3-longrope lfm2 lalamo)
foreach(name ${architectures})
  add_test(NAME golden_tiny_${name} COMMAND golden ${fixtures}/golden/tiny-${name}
    ${fixtures}/golden/tiny-${name}.safetensors)
endforeach()
# Longrope in a context that uses the short factors.
add_test(NAME golden_tiny_phi3-longrope-short COMMAND golden ${fixtures}/golden/tiny-phi3-longrope
  ${fixtures}/golden/tiny-phi3-longrope-short.safetensors)
foreach(name qwen2 gemma2 phi3 lfm2 gpt-oss mixtral llama2)
  add_test(NAME golden_tiny_${name}_lora COMMAND golden --adapter ${fixtures}/golden/tiny-${name}-lora
    ${fixtures}/golden/tiny-${name} ${fixtures}/golden/tiny-${name}.safetensors)
endforeach()
# The same weights as gpt-oss publishes them, experts in MXFP4.
add_test(NAME golden_tiny_gpt-oss-mxfp4 COMMAND golden ${fixtures}/golden/tiny-gpt-oss-mxfp4
  ${fixtures}/golden/tiny-gpt-oss.safetensors)
add_test(NAME golden_tiny_gpt-oss-mxfp4_lora COMMAND golden --adapter ${fixtures}/golden/tiny-gpt-oss-lora
  ${fixtures}/golden/tiny-gpt-oss-mxfp4 ${fixtures}/golden/tiny-gpt-oss.safetensors)
add_test(NAME golden_ablations COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/golden/ablations.sh $<TARGET_FILE:golden>
  ${fixtures}/golden)
add_test(NAME golden_shakespeare_lora_8m COMMAND golden --adapter ${CMAKE_SOURCE_DIR}/models/shakespeare-lora-8m
  ${CMAKE_SOURCE_DIR}/models/bookworm-8m ${fixtures}/golden/bookworm-8m.safetensors)
# The same outputs without the widest instruction sets: what other machines run.
set(levels)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND levels reference avx2)
endif()
foreach(level ${levels})
  add_test(NAME golden_bookworm_8m_${level} COMMAND golden --cpu ${level} ${CMAKE_SOURCE_DIR}/models/bookworm-8m
    ${fixtures}/golden/bookworm-8m.safetensors)
  add_test(NAME golden_tiny_qwen3_moe_${level} COMMAND golden --cpu ${level} ${fixtures}/golden/tiny-qwen3-moe
    ${fixtures}/golden/tiny-qwen3-moe.safetensors)
  foreach(name gemma2 gemma3)
    add_test(NAME golden_tiny_${name}_${level} COMMAND golden --cpu ${level} ${fixtures}/golden/tiny-${name}
      ${fixtures}/golden/tiny-${name}.safetensors)
  endforeach()
endforeach()

# Gradients of adapters (tests/golden/gradients.c).
add_executable(gradients golden/gradients.c)
target_link_libraries(gradients PRIVATE walsh_train)
# Products of MXFP4 experts (bench/experts.c), for measurements.
add_executable(experts_bench ${CMAKE_SOURCE_DIR}/bench/experts.c)
target_link_libraries(experts_bench PRIVATE walsh_train)
add_test(NAME golden_gradients_8m COMMAND gradients ${CMAKE_SOURCE_DIR}/models/bookworm-8m
  ${fixtures}/golden/lora-gradients-8m.safetensors)
add_test(NAME golden_gradients_8m_bf16 COMMAND gradients --bf16 --threads 1 ${CMAKE_SOURCE_DIR}/models/bookworm-8m
  ${fixtures}/golden/lora-gradients-8m.safetensors)
# gpt-oss: its gate, sinks, biases, and experts whose rows of gate and up alternate; made by tools/lora_gradients.py.
add_test(NAME golden_gradients_gpt_oss COMMAND gradients ${fixtures}/golden/tiny-gpt-oss
  ${fixtures}/golden/lora-gradients-tiny-gpt-oss.safetensors)
# LFM2: short convolutions between layers of attention; made by tools/lora_gradients.py --rank 4 --whole conv.
add_test(NAME golden_gradients_lfm2 COMMAND gradients ${fixtures}/golden/tiny-lfm2
  ${fixtures}/golden/lora-gradients-tiny-lfm2.safetensors)

# Gradients on packed bases against double precision on the decoded weights (tests/golden/oracle.c).
add_executable(oracle golden/oracle.c)
target_link_libraries(oracle PRIVATE walsh_train)
add_test(NAME golden_oracle COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/golden/oracle.sh $<TARGET_FILE:oracle>
  ${fixtures}/golden)
# An emulator runs each by itself; what takes it more than a minute has the label long, and is there with fewer tokens or steps.
if(CMAKE_CROSSCOMPILING)
  list(JOIN CMAKE_CROSSCOMPILING_EMULATOR " " emulator)
  set_tests_properties(golden_ablations golden_oracle PROPERTIES ENVIRONMENT "WALSH_EMULATOR=${emulator}")
  set_tests_properties(golden_bookworm_8m golden_gradients_8m golden_gradients_8m_bf16 golden_oracle PROPERTIES LABELS long)
  add_test(NAME golden_bookworm_8m_short COMMAND golden ${CMAKE_SOURCE_DIR}/models/bookworm-8m
    ${fixtures}/golden/bookworm-8m.safetensors ${CMAKE_SOURCE_DIR}/data/valid.txt 256 20.1696)
  add_test(NAME golden_gradients_8m_once COMMAND gradients --once ${CMAKE_SOURCE_DIR}/models/bookworm-8m
    ${fixtures}/golden/lora-gradients-8m.safetensors)
  foreach(model llama3 qwen3-moe)
    foreach(format dense mxfp4 e8p)
      add_test(NAME golden_oracle_${model}_${format} COMMAND oracle ${fixtures}/golden/tiny-${model}
        $<$<NOT:$<STREQUAL:${format},dense>>:${format}> COMMAND_EXPAND_LISTS)
    endforeach()
  endforeach()
endif()

# The same on a device, where the module is built and a device is there.
if(TARGET walsh-cuda)
  set(model_8m ${CMAKE_SOURCE_DIR}/models/bookworm-8m)
  add_test(NAME cuda_gradients_8m COMMAND gradients --device ${model_8m} ${fixtures}/golden/lora-gradients-8m.safetensors)
  add_test(NAME cuda_gradients_8m_bf16 COMMAND gradients --device --bf16 ${model_8m}
    ${fixtures}/golden/lora-gradients-8m.safetensors)
  set(on_device cuda_gradients_8m cuda_gradients_8m_bf16)
  foreach(format model mxfp4 e8p)
    foreach(products f32 bf16)
      set(name cuda_oracle_${format}_${products})
      set(arguments --device ${fixtures}/golden/tiny-llama3)
      if(products STREQUAL "bf16")
        list(PREPEND arguments --bf16)
      endif()
      if(NOT format STREQUAL "model")
        list(APPEND arguments ${format})
      endif()
      add_test(NAME ${name} COMMAND oracle ${arguments})
      list(APPEND on_device ${name})
    endforeach()
  endforeach()
  add_test(NAME cuda_gradients_gpt_oss COMMAND gradients --device ${fixtures}/golden/tiny-gpt-oss
    ${fixtures}/golden/lora-gradients-tiny-gpt-oss.safetensors)
  list(APPEND on_device cuda_gradients_gpt_oss)
  foreach(format mxfp4 e8p)
    add_test(NAME cuda_oracle_moe_${format} COMMAND oracle --device ${fixtures}/golden/tiny-qwen3-moe ${format})
    list(APPEND on_device cuda_oracle_moe_${format})
  endforeach()
  foreach(target gradients oracle)
    add_dependencies(${target} walsh-cuda)
  endforeach()
  set_tests_properties(${on_device} PROPERTIES SKIP_RETURN_CODE 77
    ENVIRONMENT "LD_LIBRARY_PATH=$<TARGET_FILE_DIR:walsh-cuda>:$ENV{LD_LIBRARY_PATH}")
endif()
